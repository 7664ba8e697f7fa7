"""Teachers that are there while the student trains: in this process, behind a server, or several of them together."""
