"""INT8 and FP8 that keep the picture: where to quantise, with which scales, and what it costs in decibels.

`_quantise` is the way in, and `_prepare` the way from a net to a recipe. `_structure` says what can be quantised.
`_pictures` (with `_candidates`, `_coverage`, `_drawn`) chooses what to calibrate and to judge on; `_ranges` (with
`_clips`) turns what is seen there into scales. `_equalise`, `_bias`, `_compensate`, `_reconstruct` and `_remainders`
rewrite the weights. `_simulation` computes in PyTorch what the graph will; `_loss`, `_sensitivity` and `_search`
decide what stays in half precision, each choice with weights rounded for it. `_recipe` keeps it all, and the export's
`_qdq` writes it into the graph; `_processor` writes the graph for processors. `_explain` lists what each
convolution adds to the error.
"""
