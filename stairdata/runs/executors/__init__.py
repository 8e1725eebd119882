"""Where units are worked on: in this process, or by replicas on a Ray cluster."""
