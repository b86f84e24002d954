"""Metrics of a map: agreement with a mask, a box or a known truth, and how spread out it is.

Hands on `imacs`, `iou`, `miou`, `find_boxes`, `box_iou`, `pck`, `entropy` and the placing of maps on pictures. Works on maps that are
given; never opens a trace.
"""
