//! What `serve` does, every default filled in.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use super::{ConfigError, Secret, ServeOptions, cores, shipped_model};
use crate::{files::read_text, onnx::DeviceChoice, registry::Settled};

/// Where the admin token comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum AdminToken {
    /// The environment or a file.
    Given(String),
    /// The state directory, where it is made if it is not there.
    Kept,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, in PEM.
    pub cert: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
}

/// What each caller may send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Images a second, above 0.
    pub images_per_second: f64,
    /// Images at once after a pause.
    pub burst: u32,
}

/// What `serve` does, every default filled in.
#[derive(Clone)]
pub struct Config {
    /// Model directories, the default model first.
    pub models: Vec<PathBuf>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where the admin API listens, if not there.
    pub admin_listen: Option<SocketAddr>,
    /// What the listeners speak TLS with, if they do.
    pub tls: Option<TlsFiles>,
    /// What survives a restart.
    pub state_dir: PathBuf,
    /// The URL of the store that others share, if there is one.
    pub state: Option<String>,
    /// How often to look there for changes.
    pub state_poll: Duration,
    /// Device.
    pub device: DeviceChoice,
    /// Sessions of a model, if that was said.
    pub sessions: Option<usize>,
    /// Threads of a session, if that was said.
    pub threads: Option<usize>,
    /// Threads for an image while no other is worked on, if that was said.
    pub lone_threads: Option<usize>,
    /// Whether sessions, threads and batches that were not said are measured.
    pub tune: bool,
    /// Threads that decode, if that was said; 0 is the sessions' own.
    pub decode_threads: Option<usize>,
    /// Images that may wait.
    pub queue_capacity: usize,
    /// Images in a batch, if that was said.
    pub max_batch_size: Option<usize>,
    /// How long a batch waits.
    pub max_queue_delay: Duration,
    /// How long a request may take.
    pub max_request_time: Duration,
    /// Bytes of a body.
    pub max_body_bytes: usize,
    /// Bytes of a head file.
    pub max_head_bytes: usize,
    /// Bytes of all bodies at once, those of feature sets excepted.
    pub max_bodies_bytes: usize,
    /// Bytes of a feature set.
    pub max_feature_set_bytes: u64,
    /// Bytes of all feature sets.
    pub max_feature_sets_bytes: u64,
    /// Fits that may wait.
    pub fit_queue_capacity: usize,
    /// Fits that run at once.
    pub fit_concurrency: usize,
    /// Threads of a fit.
    pub fit_threads: usize,
    /// Pixels of an image, if that was said.
    pub max_image_pixels: Option<u64>,
    /// Connections at once.
    pub max_connections: usize,
    /// From SIGTERM to the end of serving.
    pub shutdown_delay: Duration,
    /// From there to the end of the process.
    pub shutdown_timeout: Duration,
    /// The admin token.
    pub admin_token: AdminToken,
    /// More tokens.
    pub tokens_file: Option<PathBuf>,
    /// Whether inference needs a token.
    pub require_auth: bool,
    /// What each caller may send.
    pub rate_limit: Option<RateLimit>,
    /// Proxies whose word on the client's address is taken.
    pub trust_forwarded_for: usize,
    /// Where ONNX Runtime is.
    pub onnxruntime_dir: Option<PathBuf>,
    /// Bytes on a GPU.
    pub cuda_memory_limit_bytes: Option<u64>,
}

impl Config {
    /// What is said of how a model is run.
    pub fn settled(&self) -> Settled {
        Settled {
            sessions: self.sessions,
            threads: self.threads,
            max_batch_size: self.max_batch_size,
            lone_threads: self.lone_threads,
        }
    }
}

impl ServeOptions {
    /// Fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] if a default cannot be found, the token file cannot be read, or options do not go together.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let admin_token = match (&self.admin_token, &self.admin_token_file) {
            (Some(Secret(token)), _) => AdminToken::Given(sendable(token, "EQUIPOISE_ADMIN_TOKEN")?),
            (None, Some(path)) => AdminToken::Given(sendable(&read_text(path)?, &path.display().to_string())?),
            (None, None) => AdminToken::Kept,
        };
        let listen = self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8000)));
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            (None, None) => None,
            (Some(_), None) => return Err(ConfigError::Alone { given: "tls-cert", needed: "tls-key" }),
            (None, Some(_)) => return Err(ConfigError::Alone { given: "tls-key", needed: "tls-cert" }),
        };
        let address = self.admin_listen.unwrap_or(listen);
        if !address.ip().to_canonical().is_loopback() && tls.is_none() && self.allow_insecure_admin != Some(true) {
            return Err(ConfigError::InsecureAdmin { address });
        }
        let rate_limit = rate_limit(self.rate_limit_images_per_second, self.rate_limit_burst.map(NonZeroU32::get))?;
        let max_bodies_bytes = self.max_bodies_bytes.unwrap_or(2 << 30);
        let max_body_bytes = self.max_body_bytes.unwrap_or(32 << 20);
        let max_head_bytes = self.max_head_bytes.unwrap_or(max_bodies_bytes.min(1 << 30));
        for (of_one, bytes) in [("max-body-bytes", max_body_bytes), ("max-head-bytes", max_head_bytes)] {
            if max_bodies_bytes < bytes {
                return Err(ConfigError::OneOverAll { of_one, bytes, max_bodies_bytes });
            }
        }
        let models =
            if self.models.is_empty() { vec![shipped_model().ok_or(ConfigError::NoModel)?] } else { self.models };
        let milliseconds = |value: Option<u64>, default| Duration::from_millis(value.unwrap_or(default));
        let seconds = |value: Option<u64>, default| Duration::from_secs(value.unwrap_or(default));
        Ok(Config {
            models,
            listen,
            admin_listen: self.admin_listen,
            tls,
            state_dir: self.state_dir.or_else(default_state_dir).ok_or(ConfigError::NoStateDir)?,
            state: self.state,
            state_poll: milliseconds(self.state_poll_ms.map(NonZeroU64::get), 2000),
            device: self.device.unwrap_or(DeviceChoice::Auto),
            sessions: self.sessions.map(NonZeroUsize::get),
            threads: self.threads.map(NonZeroUsize::get),
            lone_threads: self.lone_threads,
            tune: self.tune.unwrap_or_default(),
            decode_threads: self.decode_threads,
            queue_capacity: self.queue_capacity.map_or(512, NonZeroUsize::get),
            max_batch_size: self.max_batch_size.map(NonZeroUsize::get),
            max_queue_delay: milliseconds(self.max_queue_delay_ms, 0),
            max_request_time: milliseconds(self.max_request_time_ms, 30_000),
            max_body_bytes,
            max_head_bytes,
            max_bodies_bytes,
            max_feature_set_bytes: self.max_feature_set_bytes.unwrap_or(4 << 30),
            max_feature_sets_bytes: self.max_feature_sets_bytes.unwrap_or(64 << 30),
            fit_queue_capacity: self.fit_queue_capacity.map_or(16, NonZeroUsize::get),
            fit_concurrency: self.fit_concurrency.map_or(1, NonZeroUsize::get),
            fit_threads: self.fit_threads.map_or_else(cores, NonZeroUsize::get),
            max_image_pixels: self.max_image_pixels,
            max_connections: self.max_connections.map_or(1024, NonZeroUsize::get),
            shutdown_delay: seconds(self.shutdown_delay_s, 0),
            shutdown_timeout: seconds(self.shutdown_timeout_s, 30),
            admin_token,
            tokens_file: self.tokens_file,
            require_auth: self.require_auth.unwrap_or(false),
            rate_limit,
            trust_forwarded_for: self.trust_forwarded_for.unwrap_or(0),
            onnxruntime_dir: self.onnxruntime_dir,
            cuda_memory_limit_bytes: self.cuda_memory_limit_bytes,
        })
    }
}

fn rate_limit(images_per_second: Option<f64>, burst: Option<u32>) -> Result<Option<RateLimit>, ConfigError> {
    let Some(images_per_second) = images_per_second else {
        return match burst {
            Some(_) => Err(ConfigError::Alone { given: "rate-limit-burst", needed: "rate-limit-images-per-second" }),
            None => Ok(None),
        };
    };
    if !(images_per_second.is_finite() && images_per_second > 0.0) {
        return Err(ConfigError::RateLimit { value: images_per_second });
    }
    // At least one: less than that would let nothing through.
    let burst = burst.unwrap_or(images_per_second.ceil().min(f64::from(u32::MAX)) as u32);
    Ok(Some(RateLimit { images_per_second, burst }))
}

/// What the environment tells the clients of clouds: names and values.
pub(crate) fn cloud_options() -> Vec<(String, String)> {
    let is_one = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    let pairs =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    pairs.filter(|(name, _)| is_one(name)).collect()
}

/// Where the state is kept if nothing else is said.
pub(crate) fn default_state_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    base.map(|base| base.join("equipoise"))
}

/// A token as it can stand in a header.
fn sendable(token: &str, place: &str) -> Result<String, ConfigError> {
    let place = || place.to_owned();
    match token.trim() {
        "" => Err(ConfigError::EmptyToken { place: place() }),
        token if !token.bytes().all(|byte| matches!(byte, b' '..=b'~')) => {
            Err(ConfigError::UnsendableToken { place: place() })
        }
        token => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_can_be_said_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("equipoise.toml");
        let text = "models = [\"m\"]\nstate_dir = \"s\"\nlisten = \"0.0.0.0:1\"\nadmin_listen = \"0.0.0.0:2\"\n\
            tls_cert = \"c.pem\"\ntls_key = \"k.pem\"\ntokens_file = \"t.toml\"\nrequire_auth = true\n\
            rate_limit_images_per_second = 10\ntrust_forwarded_for = 2\nallow_insecure_admin = false\n";
        std::fs::write(&path, text).unwrap();
        let of = |options: ServeOptions| {
            ServeOptions { config: Some(path.clone()), ..options }.with_file().unwrap().resolve().unwrap()
        };
        let config = of(ServeOptions::default());
        let beside = |name: &str| folder.path().join(name);
        assert_eq!(config.tls, Some(TlsFiles { cert: beside("c.pem"), key: beside("k.pem") }));
        assert_eq!(config.tokens_file, Some(beside("t.toml")));
        assert_eq!(config.admin_listen, Some(([0, 0, 0, 0], 2).into()));
        assert_eq!((config.require_auth, config.trust_forwarded_for), (true, 2));
        assert_eq!(config.rate_limit, Some(RateLimit { images_per_second: 10.0, burst: 10 }));
        // A flag wins.
        let flags = ServeOptions {
            require_auth: Some(false),
            rate_limit_images_per_second: Some(0.1),
            trust_forwarded_for: Some(0),
            ..ServeOptions::default()
        };
        let config = of(flags);
        assert_eq!((config.require_auth, config.trust_forwarded_for), (false, 0));
        assert_eq!(config.rate_limit, Some(RateLimit { images_per_second: 0.1, burst: 1 }));
    }

    #[test]
    fn all_bodies_together_may_take_what_one_may() {
        let resolve = |body, head, bodies| {
            let options = ServeOptions {
                models: vec!["m".into()],
                state_dir: Some("s".into()),
                max_body_bytes: body,
                max_head_bytes: head,
                max_bodies_bytes: bodies,
                ..ServeOptions::default()
            };
            options.resolve().map(|config| config.max_head_bytes)
        };
        assert_eq!(resolve(None, None, None).ok(), Some(1 << 30));
        assert_eq!(resolve(Some(1 << 31), None, Some(1 << 31)).ok(), Some(1 << 30));
        assert_eq!(resolve(Some(1 << 20), None, Some(1 << 20)).ok(), Some(1 << 20));
        for (body, head, bodies) in
            [(Some(1 << 32), None, None), (None, None, Some(1 << 20)), (None, Some(1 << 32), None)]
        {
            assert!(matches!(resolve(body, head, bodies), Err(ConfigError::OneOverAll { .. })));
        }
    }

    #[test]
    fn a_token_that_no_header_can_bring_is_refused_wherever_it_stands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let (models, state_dir) = (vec!["m".into()], Some("s".into()));
        let base = ServeOptions { models, state_dir, ..ServeOptions::default() };
        let of_file = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            ServeOptions { admin_token_file: Some(path.clone()), ..base.clone() }
                .resolve()
                .map(|config| config.admin_token)
        };
        assert!(of_file("\u{feff}ab ~\r\n".as_bytes()).unwrap() == AdminToken::Given("ab ~".to_owned()));
        for token in ["pässword", "a\tb", "a\nb", "a\u{7f}"] {
            let refused = of_file(token.as_bytes()).err();
            assert!(matches!(refused, Some(ConfigError::UnsendableToken { .. })), "{token:?}");
            let given = ServeOptions { admin_token: Some(Secret(token.to_owned())), ..base.clone() };
            let refused = given.resolve().err().unwrap().to_string();
            assert!(refused.contains("EQUIPOISE_ADMIN_TOKEN") && !refused.contains(token), "{refused}");
        }
    }

    #[test]
    fn the_admin_api_is_open_to_this_machine_alone_unless_told_otherwise() {
        let resolve = |listen: &str, admin: Option<&str>, allow: Option<bool>, tls: bool| {
            let file = |name: &str| tls.then(|| PathBuf::from(name));
            let options = ServeOptions {
                models: vec!["m".into()],
                state_dir: Some("s".into()),
                listen: Some(listen.parse().unwrap()),
                admin_listen: admin.map(|address| address.parse().unwrap()),
                allow_insecure_admin: allow,
                tls_cert: file("c"),
                tls_key: file("k"),
                ..ServeOptions::default()
            };
            options.resolve().is_ok()
        };
        for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(resolve(listen, None, None, false), "{listen}");
        }
        for listen in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!resolve(listen, None, None, false), "{listen}");
            assert!(!resolve("127.0.0.1:1", Some(listen), None, false), "{listen}");
            assert!(!resolve(listen, None, Some(false), false), "{listen}");
            assert!(resolve(listen, None, Some(true), false), "{listen}");
            assert!(resolve(listen, None, None, true), "{listen}");
            assert!(resolve(listen, Some("127.0.0.1:2"), None, false), "{listen}");
        }
    }
}
