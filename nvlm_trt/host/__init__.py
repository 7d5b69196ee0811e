"""The process that runs tritonserver: start, gateway, supervision, end."""
