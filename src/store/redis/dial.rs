//! How a connection to Redis comes about, with or without TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, RedisConnectionInfo, RedisError, RedisResult};
use tokio::net::TcpStream;

use super::Config;
use crate::error::{Context, Error, Result};
use crate::{tasks, tls};

/// Makes connections.
#[derive(Clone)]
pub(super) struct Dialer {
    way: Way,
    settings: AsyncConnectionConfig,
}

#[derive(Clone)]
enum Way {
    /// Over TCP or a Unix socket.
    Plain(Client),
    Tls(Arc<Secured>),
}

/// What it takes for a connection with TLS.
struct Secured {
    connector: Arc<tls::Connector>,
    host: String,
    port: u16,
    login: RedisConnectionInfo,
    timeout: Duration,
}

impl Dialer {
    /// # Errors
    /// `Invalid` when the URL is no address, or the password's file or one of TLS cannot be used.
    pub(super) fn new(config: &Config) -> Result<Self> {
        let wrong =
            |error: RedisError| Error::invalid("the url of a redis tier is no address").with_source(error);
        let address = config.address().map_err(wrong)?;
        let mut login = address.redis_settings().clone().set_skip_set_lib_name();
        if let Some(file) = &config.password_file {
            let password =
                std::fs::read_to_string(file).context(|| "read the password_file of a redis tier")?;
            login = login.set_password(password.trim_end_matches(['\r', '\n']));
        }
        if let Some(username) = &config.username {
            login = login.set_username(username);
        }
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect_timeout))
            .set_response_timeout(Some(config.timeout));
        let way = match (config.effective_tls(), address.addr()) {
            (Some(tls), ConnectionAddr::Tcp(host, port)) => {
                let name = config.name.as_deref().unwrap_or("redis");
                let connector = tls::Connector::new(name, "tls", &tls, None)?;
                let (host, port, timeout) = (host.clone(), *port, config.connect_timeout);
                Way::Tls(Arc::new(Secured { connector, host, port, login, timeout }))
            }
            (Some(_) | None, _) => {
                Way::Plain(Client::open(address.set_redis_settings(login)).map_err(wrong)?)
            }
        };
        Ok(Self { way, settings })
    }

    /// # Errors
    /// When nobody answers in time, or one of both does not trust the other.
    pub(super) async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        match &self.way {
            Way::Plain(client) => client.get_multiplexed_async_connection_with_config(&self.settings).await,
            Way::Tls(secured) => {
                let connecting = secured.connect(self.settings.clone());
                let late = || RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
                tokio::time::timeout(secured.timeout, connecting).await.unwrap_or_else(|_| Err(late()))
            }
        }
    }
}

impl Secured {
    async fn connect(&self, settings: AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let stream = TcpStream::connect((self.host.trim_matches(['[', ']']), self.port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(&self.host, stream).await?;
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&self.login, stream, settings).await?;
        // It ends with the last handle of the connection.
        tasks::spawn("redis connection", driver);
        Ok(connection)
    }
}
