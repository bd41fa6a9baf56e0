"""`owl3 data check`: everything that is wrong with sources, and what a training run would make of them."""
