"""Models and LoRAs, on the disk and on the hub: which there are, what each is. Small files and headers, no torch."""
