"""Where arrays live: the mesh, and sharding rules by parameter path."""
