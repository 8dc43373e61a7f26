-- Money by whom and when: what is spent and reserved, together, of a person or repository on a day, of an owner in a
-- month (UTC). Changed in the transaction that changes the ledger.
CREATE TABLE budgets (
    -- user:<remote>:<id> | repo:<remote>:<id> | owner:<remote>:<name>
    scope TEXT NOT NULL,
    -- 2026-11-21 | 2026-11
    period TEXT NOT NULL,
    micros BIGINT NOT NULL,
    PRIMARY KEY (scope, period)
);
