"""The engine: a job to pictures, on torch and diffusers. Lives in the daemon's child process, never in the daemon."""
