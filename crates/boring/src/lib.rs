//! The TLS backend of Lictor on BoringSSL.
