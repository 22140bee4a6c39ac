//! The harness that boots guests for the integration tests.
