//! The suite that every TLS backend of Lictor must pass, as functions over one trait.
