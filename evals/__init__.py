"""The benchmarks: one short module each, declaring tasks with `jaxllm.evaluation.tasks`.

Add a benchmark by adding a module here; `jaxllm.evaluation.registry` finds its tasks by name. For
one outside jaxllm, name its module in `EvalConfig.modules`. `rows` reads the usual files and says
where a broken one is broken; `letters` declares exams whose options are answered by letter.
`mixtures` has names for several tasks at once, `sha256` the hashes of files.
"""
