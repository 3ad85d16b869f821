"""The runner behind `atp eval` and `atp report`: every method on every task, one record an answer, resumable, in shards.

`settings` what is asked for; `asking` tasks in batches; `cells` methods with their plans; `records` and `header` what lies on
disk; `execute` the loop; `gather`, `report`, `pareto` and `page` the tables and pictures.
"""
