"""A long run of mixed requests against a server, with every answer checked and every process watched."""
