"""Pictures that a job begins with: what names them, whether they can be taken, and their bytes and pixels."""
