//! Sections that say who may come in: TLS and access.

use std::path::PathBuf;
use std::time::Duration;

use super::Config;
use super::raw::{Found, Place};
use super::resolve::{Judge, value};
use super::sections::{Access, GrpcTls};
use crate::access::{Policy, TokenRules, What};
use crate::ingress::config::{AccessConfig, ClientAuth, KeySource, TlsConfig};
use crate::limits;
use crate::route::{Lookup, Mistakes, RouteTable, did_you_mean};
use crate::web_client::parse_url;

impl Judge<'_> {
    pub(super) fn grpc_tls(&mut self) -> Option<TlsConfig> {
        const SECTION: &str = "grpc.tls";
        let part = GrpcTls::read(self.layers, self.mistakes);
        let place = self.layers.place_of(SECTION)?;
        for found in [&part.cert_file, &part.key_file, &part.client_ca_file].into_iter().flatten() {
            self.readable(found);
        }
        for name in ["cert_file", "key_file"] {
            if !self.is_set(SECTION, name) {
                self.missing(SECTION, &place, name, "a PEM file");
            }
        }
        if let Some(auth) = part.client_auth.as_ref().filter(|_| !self.is_set(SECTION, "client_ca_file")) {
            let what = "says nothing without grpc.tls.client_ca_file";
            self.mistakes.push(auth.place.mistake(what));
        }
        Some(TlsConfig {
            cert_file: part.cert_file?.value,
            key_file: part.key_file?.value,
            client_ca_file: part.client_ca_file.map(|found| found.value),
            client_auth: value(part.client_auth, |auth| auth.0, ClientAuth::Required),
            reload_interval: value(
                part.reload_interval,
                |time| time.0,
                Duration::from_millis(limits::TLS_RELOAD_INTERVAL_MS),
            ),
        })
    }

    pub(super) fn access(&mut self) -> Option<AccessConfig> {
        const SECTION: &str = "access";
        let part = Access::read(self.layers, self.mistakes);
        let place = self.layers.place_of(SECTION)?;
        if !self.is_set(SECTION, "allow") {
            let hint = "with [access], what no rule allows is refused; such as [\"cert:web -> shop.v1.OrderService/*\"]";
            self.missing(SECTION, &place, "allow", hint);
        }
        let has_keys = self.is_set(SECTION, "jwks_file") || self.is_set(SECTION, "jwks_url");
        let has_certificates = self.is_set("grpc.tls", "client_ca_file");
        if let Some(allow) = &part.allow {
            let rules = &allow.value.0;
            if !has_keys && rules.iter().any(|rule| rule.needs_token()) {
                let what = "has rules about tokens, and there are no keys to check tokens with";
                let hint = "set access.jwks_file or access.jwks_url";
                self.mistakes.push(allow.place.mistake(what).hint(hint));
            }
            if !has_certificates && rules.iter().any(|rule| rule.needs_certificate()) {
                let what = "has rules about certificates, and callers are not asked for any";
                self.mistakes.push(allow.place.mistake(what).hint("set grpc.tls.client_ca_file"));
            }
        }
        if !has_keys {
            let about_tokens = [
                part.issuer.as_ref().map(|found| &found.place),
                part.audience.as_ref().map(|found| &found.place),
                part.leeway.as_ref().map(|found| &found.place),
            ];
            for place in about_tokens.into_iter().flatten() {
                let hint = "set access.jwks_file or access.jwks_url";
                self.mistakes.push(place.mistake("says nothing without keys").hint(hint));
            }
        }
        let leeway = Duration::from_millis(limits::TOKEN_LEEWAY_MS);
        let refresh = Duration::from_millis(limits::JWKS_REFRESH_MS);
        let keys = self.keys(part.jwks_file, part.jwks_url, part.jwks_ca_file);
        Some(AccessConfig {
            policy: Policy::new(part.allow.map_or_else(Vec::new, |allow| allow.value.0)),
            keys,
            tokens: TokenRules {
                issuer: part.issuer.map(|found| found.value),
                audience: part.audience.map(|found| found.value),
                leeway: value(part.leeway, |time| time.0, leeway),
            },
            keys_refresh: value(part.jwks_refresh, |time| time.0, refresh),
        })
    }

    fn keys(
        &mut self,
        file: Option<Found<PathBuf>>,
        url: Option<Found<String>>,
        ca_file: Option<Found<PathBuf>>,
    ) -> Option<KeySource> {
        if let Some(found) = &ca_file {
            self.readable(found);
        }
        match (file, url) {
            (Some(file), Some(_)) => {
                self.mistakes
                    .push(file.place.mistake("access.jwks_url is set, too").hint("set one of the two"));
                None
            }
            (Some(file), None) => {
                self.readable(&file);
                Some(KeySource::File(file.value))
            }
            (None, Some(url)) => {
                if parse_url(&url.value).is_none() {
                    let hint = "http://HOST[:PORT]/PATH, or https, without a user";
                    self.mistakes.push(url.place.mistake("is no URL of a JWK set").hint(hint));
                    return None;
                }
                Some(KeySource::Url(url.value, ca_file.map(|found| found.value)))
            }
            (None, None) => None,
        }
    }
}

/// Finds rules about what is not served: most likely a name that was mistyped,
/// and a method that nobody may call.
pub(super) fn check_rules(config: &Config, routes: &RouteTable, place: Place, mistakes: &mut Mistakes) {
    let Some(access) = &config.gateway.grpc.access else { return };
    for rule in access.policy.rules() {
        let what = rule.what();
        let (service, method) = match what {
            What::Everything => continue,
            What::Service(service) => (service, None),
            What::Method(service, method) => (service, Some(method)),
        };
        if service.starts_with("grpc.") {
            continue;
        }
        if !routes.services().any(|known| known == service) {
            let hint = did_you_mean(service, routes.services());
            mistakes.push(place.mistake(format!("{what}: no such service is served")).maybe_hint(hint));
        } else if let Some(method) = method
            && matches!(
                routes.lookup(&format!("/{service}/{method}")),
                Lookup::UnknownMethod | Lookup::UnknownService
            )
        {
            mistakes.push(place.mistake(format!("{what}: the service has no such method")));
        }
    }
}
