"""What steps the environments: EnvPool's threads, gymnasium in this process, gymnasium in a process each."""
