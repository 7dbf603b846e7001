"""All that only a GPU can show, in two parts of pieces that each run in a process of their own.

    part a   kernels        attention forward and backward against the oracle
             large_cache    caches of more than 2^31 elements, written and read at their end
             kernel_times   attention of an 8B model against the device's memory and matrix units
    part b   ours           first and later tokens at Qwen3-14B's shape, and 8 workers in one batch
             torch          the same in torch: from text, and the published way
             train          a training step

A piece that fails, or that there is no time left for, is recorded as such, and the others run.
`launch/gpu_check.sh` runs it; in miniature every piece runs on a CPU.
"""
