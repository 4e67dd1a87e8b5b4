"""Seedling: the small Stable Diffusion model that ships with darkroom, and how it is made from nothing.

grammar        the words: colours, shapes, scenes, times, patterns
picture        what a picture shows (a plan), and random plans
drawing        plan -> pixels
captions       plan -> prompts
dataset        many plans, drawn in parallel into folders by size
tokenizer      CLIP's tokenizer, trained on the captions
architecture   the shapes of the networks and the noise schedule
pace           a wall-clock budget, learning-rate schedule, resumable checkpoints
optimizers     Muon for matrices, Adam for the rest
vae, unet      the two trainings
export         checkpoints -> a diffusers pipeline folder, swapped in at once
measure        colours and counts by pixels
judge          a small classifier of shapes, scenes and times
prompts        the 400 prompts of the evaluation
evaluate       how well a pipeline folder follows prompts, as one line of JSON
tune           the same measuring, of other prompts, to choose settings by
report         the figures against their bars, into docs/seedling.md
sheet          a sheet of example pictures, for a person to look at
make           all of it, one command
"""
