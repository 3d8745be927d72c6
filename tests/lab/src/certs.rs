//! The mesh's certificates: one authority per bring-up, one certificate per pod with its SPIFFE identity.
//!
//! The keys are ECDSA P-256. Istio's default is RSA-2048, which costs more per handshake and nothing per request.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::topology::TRUST_DOMAIN;

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The generator refused.
    #[error("making the mesh's certificates failed: {0}")]
    Generate(#[from] rcgen::Error),
    /// The files could not be written.
    #[error("the certificate {path} cannot be written: {why}", path = path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
}

/// The authority of one lab.
#[derive(Debug)]
pub struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// When key generation fails.
    pub fn new() -> Result<Self, CertError> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::OrganizationName, TRUST_DOMAIN);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    /// Writes `cert-chain.pem`, `key.pem` and `root-cert.pem` into a folder.
    ///
    /// # Errors
    /// When signing or writing fails.
    pub fn issue(&self, spiffe_id: &str, into: &Path) -> Result<(), CertError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(spiffe_id.try_into()?)];
        params.distinguished_name.push(DnType::OrganizationName, TRUST_DOMAIN);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = [
            ("cert-chain.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
            ("root-cert.pem", self.certificate.pem()),
        ];
        for (name, pem) in files {
            let path = into.join(name);
            std::fs::write(&path, pem).map_err(|why| CertError::Write { path, why })?;
        }
        Ok(())
    }
}
