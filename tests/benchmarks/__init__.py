"""Measurements that anyone can run; figures are ratios within one run, never absolute promises."""
