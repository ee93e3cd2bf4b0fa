"""What a config costs on a machine that is not there: programs, their memory, operations and time."""
