-- What a run's container used, every few seconds; bounded per run by the sampler.
CREATE TABLE samples (
    run TEXT NOT NULL,
    at BIGINT NOT NULL,
    -- Thousandths of a processor since the sample before.
    millicpus BIGINT NOT NULL,
    memory_bytes BIGINT NOT NULL,
    -- Workspace, output and home.
    disk_bytes BIGINT NOT NULL,
    PRIMARY KEY (run, at)
);
