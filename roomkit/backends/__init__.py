"""Where rooms live past one process: who owns a room, where it is kept, how its events and commands travel."""
