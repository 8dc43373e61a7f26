-- The ledger of one month, for the report that an operator asks for.

CREATE INDEX ledger_created ON ledger (created_at);
