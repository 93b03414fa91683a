"""The benchmarks: one short module each, declaring tasks with `jaxllm.evaluation.tasks`.

To add a benchmark, add a module here; `jaxllm.evaluation.registry` finds its tasks by name. For one
outside jaxllm, add its module to `EvalConfig.modules`. `rows` reads the usual file formats and
locates errors in them; `letters` declares exams whose options are answered by letter. `mixtures`
names groups of tasks, `sha256` has the hashes of files.
"""
