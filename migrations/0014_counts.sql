-- Deliveries are counted by state at every scrape: without reading their bodies.
CREATE INDEX inbox_state ON inbox (state);
