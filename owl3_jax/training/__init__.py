"""Training: a pure step, a plain loop, checkpoints from which it resumes bit for bit.

loop           restores or starts, then steps, reports, saves and stops
step           the jitted step over the mesh, and the state that it updates
gradients      loss and gradients of one batch, microbatch by microbatch
loss           next-token cross-entropy, a few positions at a time
frozen         which parameters are trained
optimizer      AdamW with warm-up and cosine decay
resume         from where a run goes on
checkpoint     saves and restores a run
local_checkpoints  the same on each host's own disk, more often
checksums      notice arrays that storage has changed
compiled_step  a compiled step as a file
processor      the processor that a run's config describes
guard          which steps are bad
validation     held-out loss, and scores of tasks, on the way
reports        what a run says of itself
metrics        the numbers in it, and their files
trackers       services that collect them: Weights & Biases, MLflow
accounts       where the wall time of a run goes
runs           reads the workdirs of runs
runs_summary   where runs stand, and where their time went
runs_page      their curves on one page
profile        traces of chosen steps, and where their time goes
"""
