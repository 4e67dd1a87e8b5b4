"""How a job is fitted into the memory that there is. Pure: no torch here."""
