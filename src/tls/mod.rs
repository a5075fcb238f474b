//! The one provider of cryptography for TLS: ring.

/// Makes ring the provider of this process; reqwest and rustls look for it when they build a client. To call it again is no error.
pub fn install() {
    // The error says that a provider is installed, and no other than this one is part of the program.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
