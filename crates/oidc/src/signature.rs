//! Whether a provider's key has signed a token.

use std::str::FromStr as _;

use fettle_domain::oidc::Claims;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};

/// Of two keys each. With one key for both sides, whoever knows a published key could sign; and `none` signs nothing.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// A longer text is no token of a sign-in; it is not decoded.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsound {
    /// Perhaps there are new keys.
    UnknownKey,
    Form,
    Algorithm,
    Signature,
}

impl std::fmt::Display for Unsound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UnknownKey => "what it says is signed with a key that it does not publish",
            Self::Form => "what it says has not the form of a token",
            Self::Algorithm => "what it says is not signed by a method that proves who signed",
            Self::Signature => "the signature of what it says is wrong",
        })
    }
}

/// What a token says that one of `keys` has signed. Nothing of what it says is judged.
pub(crate) fn claims(token: &str, keys: &JwkSet) -> Result<Claims, Unsound> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Unsound::Form);
    }
    let header = decode_header(token).map_err(|_| Unsound::Algorithm)?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(Unsound::Algorithm);
    }
    let mut rules = Validation::new(header.alg);
    rules.required_spec_claims.clear();
    (rules.validate_exp, rules.validate_aud) = (false, false);
    let mut unsound = Unsound::UnknownKey;
    for key in keys.keys.iter().filter(|key| signs(key, header.alg)) {
        if header.kid.is_some() && key.common.key_id != header.kid {
            continue;
        }
        let Ok(key) = DecodingKey::from_jwk(key) else { continue };
        match decode::<Claims>(token, &key, &rules) {
            Ok(read) => return Ok(read.claims),
            Err(error) if matches!(error.kind(), jsonwebtoken::errors::ErrorKind::Json(_)) => {
                return Err(Unsound::Form);
            }
            Err(_) => unsound = Unsound::Signature,
        }
    }
    Err(unsound)
}

/// Whether a key is there for signatures of this kind.
fn signs(key: &Jwk, algorithm: Algorithm) -> bool {
    let public = !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
    let meant = matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let stated = key.common.key_algorithm.map(|stated| Algorithm::from_str(&stated.to_string()).ok());
    public && meant && stated.is_none_or(|stated| stated == Some(algorithm))
}
