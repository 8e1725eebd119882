"""What goes over the wire to a model server and comes back, before anything is made of it."""
