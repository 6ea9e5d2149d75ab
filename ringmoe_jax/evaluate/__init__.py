"""How good a model is: frozen-feature probes, reconstruction against trivial predictors, routing, pictures.

bootstrap.py        95 % intervals that know which tiles are not independent
features.py         frozen features of a split, from any encoder
baselines.py        what a probe must beat: image statistics, random convolutions, random weights
probes.py           k nearest neighbours and logistic regression
logistic.py         logistic regression over a path of penalties
reconstruction.py   masked losses beside the losses of trivial predictors
metrics/            of tasks: classes, masks, boxes, tracks, heights; intervals for all of them
routing.py          expert loads, drops, entropies and dead experts
quicklook.py        physical pixels to something to look at
style.py            how all figures look
task_figures.py     pictures of tasks: confusion, masks, boxes, changes, tracks, heights
"""
