-- Deliveries are counted by state at every scrape, and those that are old are looked for all the time: without reading
-- their bodies.
CREATE INDEX inbox_state ON inbox (state, received_at);
-- Attempts under way are looked for all the time, too.
CREATE INDEX attempts_open ON attempts (started_at, slot) WHERE ended_at IS NULL;
