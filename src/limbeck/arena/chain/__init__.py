"""The chain as the arena sees it: `interface.Chain`, and the embedded back end `ledger.Ledger`."""
