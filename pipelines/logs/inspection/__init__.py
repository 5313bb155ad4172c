"""Logs that no configuration describes yet: what is there, what its columns may be, and what reading it would reject.

| file      |                                                                   |
| --------- | ----------------------------------------------------------------- |
| `layout`  | the files, their formats, and the folders that say a landing day  |
| `dialect` | how CSV files are divided                                         |
| `columns` | what the columns of a sample hold                                 |
| `mapping` | which of them are ours, by name and by values                     |
| `trial`   | a sample read and validated as the job would                      |
"""
