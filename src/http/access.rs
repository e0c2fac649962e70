//! Who may ask for what: one table, one door, and who came through it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{FromRequestParts, MatchedPath, Request},
    http::{Extensions, HeaderMap, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{App, error::ApiError, query::refuse_unread};
use crate::{
    access::{RateLimiter, RateRefusal, Role, Sender},
    batcher::Inputs,
    registry::Author,
};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: probes, and pages that are the same for every server.
    Nothing,
    /// This role if the server requires it (`--require-auth`), else nothing.
    IfClosed(Role),
    /// This role.
    Always(Role),
}

use Need::{Always, IfClosed, Nothing};
use Role::{Admin, Operate, Predict};

/// What every route asks of its caller.
pub const NEEDS: [(&str, &str, Need); 30] = [
    ("POST", "/v1/classify", IfClosed(Predict)),
    ("POST", "/v1/models/{model}/classify", IfClosed(Predict)),
    ("POST", "/v1/models/{model}/features", IfClosed(Predict)),
    ("GET", "/v1/models", IfClosed(Predict)),
    ("GET", "/v1/models/{model}", IfClosed(Predict)),
    ("GET", "/livez", Nothing),
    ("GET", "/readyz", Nothing),
    ("GET", "/metrics", IfClosed(Predict)),
    ("GET", "/openapi.json", Nothing),
    ("GET", "/docs", Nothing),
    ("GET", "/", Nothing),
    ("GET", "/admin/v1/models/{model}/heads", Always(Operate)),
    ("GET", "/admin/v1/models/{model}/heads/{head}", Always(Operate)),
    ("PATCH", "/admin/v1/models/{model}/heads/{head}", Always(Operate)),
    ("PUT", "/admin/v1/models/{model}/heads/{head}", Always(Admin)),
    ("DELETE", "/admin/v1/models/{model}/heads/{head}", Always(Admin)),
    ("POST", "/admin/v1/models/{model}/heads/{head}/evaluate", Always(Operate)),
    ("PUT", "/admin/v1/models/{model}/default-head", Always(Operate)),
    ("POST", "/admin/v1/models/{model}/rollback", Always(Operate)),
    ("GET", "/admin/v1/audit", Always(Operate)),
    ("GET", "/admin/v1/models/{model}/feature-sets", Always(Operate)),
    ("POST", "/admin/v1/models/{model}/feature-sets", Always(Operate)),
    ("GET", "/admin/v1/models/{model}/feature-sets/{id}", Always(Operate)),
    ("DELETE", "/admin/v1/models/{model}/feature-sets/{id}", Always(Operate)),
    ("GET", "/admin/v1/models/{model}/fits", Always(Operate)),
    ("POST", "/admin/v1/models/{model}/fits", Always(Operate)),
    ("GET", "/admin/v1/models/{model}/fits/{id}", Always(Operate)),
    ("DELETE", "/admin/v1/models/{model}/fits/{id}", Always(Operate)),
    ("GET", "/admin/v1/models/{model}/fits/{id}/events", Always(Operate)),
    ("POST", "/admin/v1/models/{model}/fits/{id}/publish", Always(Admin)),
];

/// What a request asks of its caller, by the route that it matched.
fn need(method: &Method, route: Option<&str>, path: &str, has_admin: bool) -> Need {
    let Some(route) = route else {
        // Whether something is there is not for everybody to know.
        return if has_admin && is_admin(path) { Always(Operate) } else { Nothing };
    };
    let method = asked(method);
    let mut of_route = NEEDS.iter().filter(|(_, path, _)| *path == route);
    if let Some((_, _, need)) = of_route.clone().find(|(of, _, _)| *of == method) {
        return *need;
    }
    match of_route.next() {
        // A method that the route does not take, which it will say.
        Some(_) if is_admin(route) => Always(Operate),
        Some(_) => Nothing,
        // A route that was forgotten above; the tests would tell.
        None => Always(Admin),
    }
}

/// The method of the table: `HEAD` asks what `GET` does.
pub(super) fn asked(method: &Method) -> &str {
    if *method == Method::HEAD { "GET" } else { method.as_str() }
}

fn is_admin(path: &str) -> bool {
    path.strip_prefix("/admin").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Who asks: the bearer of a token.
///
/// As an argument of a handler below `/admin` it is always there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The token's name.
    pub name: Arc<str>,
    /// What the token is good for.
    pub role: Role,
}

impl Caller {
    /// As the one who makes a change.
    pub(super) fn author(&self) -> Author {
        Author::new(&self.name)
    }

    /// Refuses what this caller may not do.
    pub(super) fn needs(&self, needed: Role) -> Result<(), ApiError> {
        if self.role < needed { Err(ApiError::RoleTooSmall { needed }) } else { Ok(()) }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().ok_or(ApiError::Unauthorized)
    }
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What the door of a listener knows.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) app: Arc<App>,
    /// Whether the admin API is behind it.
    pub(super) has_admin: bool,
}

/// Lets through who may: 401 without a token, 403 with a wrong one, or with one of too small a role.
pub(super) async fn authorize(door: Door, mut request: Request, next: Next) -> Response {
    let Door { app, has_admin } = door;
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let needed = match need(request.method(), route, request.uri().path(), has_admin) {
        Nothing => return enter(request, next).await,
        IfClosed(role) => app.requires_auth.then_some(role),
        Always(role) => Some(role),
    };
    let token = bearer_token(request.headers());
    let caller = token.and_then(|token| app.access.bearer(token)).map(|(name, role)| Caller { name, role });
    match (needed, token, caller) {
        (Some(_), None, _) => return ApiError::Unauthorized.into_response(),
        (Some(_), Some(_), None) => return ApiError::Forbidden.into_response(),
        // Whoever may come without a token may come with one that means something to somebody else.
        (None, _, None) => {}
        (needed, _, Some(caller)) => {
            let span = tracing::Span::current();
            span.record("caller", &*caller.name).record("role", caller.role.as_str());
            if let Some(Err(error)) = needed.map(|needed| caller.needs(needed)) {
                return error.into_response();
            }
            request.extensions_mut().insert(caller);
        }
    }
    enter(request, next).await
}

async fn enter(request: Request, next: Next) -> Response {
    match refuse_unread(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The caller's bucket of images, if there is a limit on them.
pub(super) struct Allowance(Option<(Arc<App>, Sender)>);

impl Allowance {
    /// Refuses a caller whose bucket is empty, before its body is read.
    pub(super) fn look(&self) -> Result<(), ApiError> {
        self.with(|limiter, sender| limiter.look(sender), 1)
    }

    /// Takes the images of a body from the caller's bucket: one for a body that cannot be taken apart.
    pub(super) fn count(&self, parsed: Result<Inputs, ApiError>) -> Result<Inputs, ApiError> {
        let n = parsed.as_ref().map_or(1, Inputs::len);
        let taken = self.with(|limiter, sender| limiter.take(sender, n), n);
        let inputs = parsed?;
        taken.map(|()| inputs)
    }

    fn with(
        &self,
        ask: impl FnOnce(&RateLimiter, &Sender) -> Result<(), RateRefusal>,
        n: usize,
    ) -> Result<(), ApiError> {
        let Some((app, sender)) = &self.0 else { return Ok(()) };
        let Some(limiter) = &app.rate_limiter else { return Ok(()) };
        ask(limiter, sender).map_err(|refusal| match refusal {
            RateRefusal::Wait(wait) => ApiError::RateLimited { seconds: wait.as_secs() + 1 },
            RateRefusal::Never { burst } => ApiError::BeyondBurst { n, burst },
        })
    }
}

impl FromRequestParts<Arc<App>> for Allowance {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Self::Rejection> {
        if app.rate_limiter.is_none() {
            return Ok(Self(None));
        }
        let sender = sender(&parts.extensions, &parts.headers, app.trusted_proxies);
        Ok(Self(Some((Arc::clone(app), sender))))
    }
}

/// Whose images a request's are: its token's, else its address's.
fn sender(extensions: &Extensions, headers: &HeaderMap, trusted_proxies: usize) -> Sender {
    if let Some(caller) = extensions.get::<Caller>() {
        return Sender::Token(Arc::clone(&caller.name));
    }
    let peer = extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |Peer(peer)| peer.ip());
    Sender::of_address(forwarded_for(headers, trusted_proxies).unwrap_or(peer))
}

/// The address that the outermost of `n` trusted proxies saw. Each of them has added at the end of the list the address that
/// it saw; what stands before these may be anybody's invention.
fn forwarded_for(headers: &HeaderMap, n: usize) -> Option<IpAddr> {
    let lists = headers.get_all("x-forwarded-for").iter().rev();
    let mut from_the_end = lists.flat_map(|list| list.as_bytes().rsplit(|&byte| byte == b','));
    let seen = std::str::from_utf8(from_the_end.nth(n.checked_sub(1)?)?).ok()?.trim();
    // Some write a port behind it.
    seen.parse().ok().or_else(|| seen.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_trusted_proxies_wrote_says_who_a_client_is() {
        let check = |lists: &[&'static str], n, expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append("x-forwarded-for", axum::http::HeaderValue::from_bytes(list.as_bytes()).unwrap());
            }
            assert_eq!(forwarded_for(&headers, n), expected.map(|text| text.parse().unwrap()), "{lists:?} {n}");
        };
        check(&["1.1.1.1, 2.2.2.2"], 0, None);
        check(&["1.1.1.1, 2.2.2.2"], 1, Some("2.2.2.2"));
        check(&["1.1.1.1, 2.2.2.2"], 2, Some("1.1.1.1"));
        check(&["1.1.1.1, 2.2.2.2"], 3, None);
        check(&["1.1.1.1", "2.2.2.2,3.3.3.3"], 2, Some("2.2.2.2"));
        check(&["1.1.1.1", "2.2.2.2,3.3.3.3"], 3, Some("1.1.1.1"));
        check(&["2.2.2.2:4711"], 1, Some("2.2.2.2"));
        check(&["[2001:db8::1]:4711"], 1, Some("2001:db8::1"));
        check(&["2001:db8::1"], 1, Some("2001:db8::1"));
        check(&["unknown"], 1, None);
        check(&["\u{e9}, 2.2.2.2"], 1, Some("2.2.2.2"));
        check(&["2.2.2.2, \u{e9}"], 1, None);
        check(&[], 1, None);
    }

    #[test]
    fn a_route_without_an_entry_is_for_the_admin() {
        let need = |method: Method, route| need(&method, route, route.unwrap_or("/admin"), true);
        assert_eq!(need(Method::GET, Some("/admin/v1/forgotten")), Always(Admin));
        assert_eq!(need(Method::GET, Some("/forgotten")), Always(Admin));
        assert_eq!(need(Method::GET, None), Always(Operate));
        assert_eq!(need(Method::HEAD, Some("/metrics")), IfClosed(Predict));
        assert_eq!(need(Method::POST, Some("/metrics")), Nothing);
        assert_eq!(need(Method::POST, Some("/admin/v1/models/{model}/heads/{head}")), Always(Operate));
    }
}
