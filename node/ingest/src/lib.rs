//! Adapters that turn each protocol into one batch type
