-- Ended runs by age: what they left is thrown away after its time.
CREATE INDEX runs_finished ON runs (finished_at, id) WHERE finished_at IS NOT NULL;
