//! The TLS backend of Lictor on rustls and aws-lc.
