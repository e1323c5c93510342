"""What `./run doctor` looks at: the machine, the installation, services, and which config fits."""
