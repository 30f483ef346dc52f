//! The TLS backend of Lictor on OpenSSL 3.
