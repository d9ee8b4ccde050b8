//! placeholder
pub struct RealHost;
