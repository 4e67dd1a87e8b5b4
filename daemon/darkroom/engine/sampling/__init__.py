"""From noise to latents: the loop's arithmetic, samplers, and what makes a look of the UNet cost less."""
