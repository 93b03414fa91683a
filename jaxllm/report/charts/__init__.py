"""The charts of the report: Vega-Lite specifications made with Altair from tidy tables.

`axes` are the clocks of a run, `trajectories` the charts against them, `marks` the three forms of
all other charts, `findings` the chart of each analysis, `specs` turns a chart into JSON or PNG.
"""
