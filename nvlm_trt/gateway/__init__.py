"""The front door: HTTP for clients, OpenAI's API and KServe's, in front of a tritonserver that listens on loopback."""
