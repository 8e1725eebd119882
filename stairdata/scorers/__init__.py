"""Process reward models at work for many searches at the same time: in this process, or on a server."""
