// Client libraries of others, unmodified, each behind the same few calls. One process is one client of one library: its
// arguments say which, where the server is and what it is registered as; each line that it reads is a call, and is
// answered by one line: what the library returned, or the error that it threw.

import { createInterface } from "node:readline";
import { OAuth2Client as GoogleClient } from "google-auth-library";
import * as oauth from "oauth4webapi";
import { InMemoryWebStorage, OidcClient, User, UserManager, WebStorageStateStore } from "oidc-client-ts";
import * as openid from "openid-client";
import { AuthorizationCode } from "simple-oauth2";

const [library, issuer, tokenUrl, id, secret, scope, tokensText] = process.argv.slice(2);
const tokens = JSON.parse(tokensText); // null where the client is to sign a person in
const here = new URL(issuer);
const back = "https://app.example/back";
const signIn = "https://login.example/authorize";
const verifier = openid.randomPKCECodeVerifier();
const code_challenge = await openid.calculatePKCECodeChallenge(verifier);
const pkce = { code_challenge, code_challenge_method: "S256" };
const state = openid.randomState();

// What every library that returns its answers has in common: its caller keeps the refresh token.
function keeping(refresh, authorizationUrl, exchange) {
  let token = tokens?.refresh_token;
  const kept = async (answer) => {
    const told = await answer;
    token = told.refresh_token;
    return told;
  };
  return {
    authorizationUrl,
    exchange: async (redirectTo) => (await kept(exchange(new URL(redirectTo)))).refresh_token,
    refresh: async () => (await kept(refresh(token))).refresh_token,
    narrow: async (scope) => (await kept(refresh(token, { scope }))).scope,
  };
}

function signingKey(jwk) {
  return crypto.subtle.importKey("jwk", jwk, { name: "ECDSA", namedCurve: jwk.crv }, false, ["sign"]);
}

const libraries = {
  "openid-client": async (auth) => {
    const config = await openid.discovery(here, id, secret, auth, { algorithm: "oauth2" });
    return keeping(
      (token, parameters) => openid.refreshTokenGrant(config, token, parameters),
      () => openid.buildAuthorizationUrl(config, { redirect_uri: back, scope, state, ...pkce }).href,
      (url) => openid.authorizationCodeGrant(config, url, { pkceCodeVerifier: verifier, expectedState: state }),
    );
  },
  // The secret is a private key here: assertions, and proofs by a key of their own (RFC 7523, RFC 9449).
  "openid-client, keys": async () => {
    const { kid, ...jwk } = JSON.parse(secret);
    const auth = openid.PrivateKeyJwt({ key: await signingKey(jwk), kid });
    const config = await openid.discovery(here, id, undefined, auth, { algorithm: "oauth2" });
    const DPoP = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair());
    return keeping((token, parameters) => openid.refreshTokenGrant(config, token, parameters, { DPoP }));
  },
  "oauth4webapi, keys": async () => {
    const found = await oauth.discoveryRequest(here, { algorithm: "oauth2" });
    const server = await oauth.processDiscoveryResponse(here, found);
    const client = { client_id: id };
    const { kid, ...jwk } = JSON.parse(secret);
    const auth = oauth.PrivateKeyJwt({ key: await signingKey(jwk), kid });
    const DPoP = oauth.DPoP(client, await oauth.generateKeyPair("ES256"));
    const ask = async (token, additionalParameters) => {
      const options = { DPoP, additionalParameters };
      const response = await oauth.refreshTokenGrantRequest(server, client, auth, token, options);
      return oauth.processRefreshTokenResponse(server, client, response);
    };
    return keeping((token, parameters) =>
      ask(token, parameters).catch((error) => {
        if (!oauth.isDPoPNonceError(error)) throw error;
        return ask(token, parameters); // the nonce is in the handle by now
      }),
    );
  },
  "openid-client, Basic": () => libraries["openid-client"](openid.ClientSecretBasic(secret)),
  oauth4webapi: async () => {
    const found = await oauth.discoveryRequest(here, { algorithm: "oauth2" });
    const server = await oauth.processDiscoveryResponse(here, found);
    const client = { client_id: id };
    const auth = oauth.ClientSecretBasic(secret);
    return keeping(
      async (token, additionalParameters) => {
        const response = await oauth.refreshTokenGrantRequest(server, client, auth, token, { additionalParameters });
        return oauth.processRefreshTokenResponse(server, client, response);
      },
      () => `${signIn}?${new URLSearchParams({ client_id: id, redirect_uri: back, response_type: "code", scope, state, ...pkce })}`,
      async (url) => {
        const callback = oauth.validateAuthResponse(server, client, url, state);
        const response = await oauth.authorizationCodeGrantRequest(server, client, auth, callback, back, verifier);
        return oauth.processAuthorizationCodeResponse(server, client, response);
      },
    );
  },
  "simple-oauth2": () => {
    const { origin, pathname } = new URL(tokenUrl);
    const login = new URL(signIn);
    const auth = { tokenHost: origin, tokenPath: pathname, authorizeHost: login.origin, authorizePath: login.pathname };
    const client = new AuthorizationCode({ client: { id, secret }, auth });
    let held = tokens && client.createToken(tokens);
    const keep = (told) => (held = told).token;
    return keeping(
      async (_, parameters) => keep(await held.refresh(parameters)),
      () => client.authorizeURL({ redirect_uri: back, scope, state, ...pkce }),
      async (url) =>
        keep(await client.getToken({ code: url.searchParams.get("code"), redirect_uri: back, code_verifier: verifier })),
    );
  },
  "oidc-client-ts": async (client_secret = secret) => {
    const store = new WebStorageStateStore({ store: new InMemoryWebStorage() });
    const settings = {
      authority: issuer,
      client_id: id,
      client_secret,
      redirect_uri: back,
      scope,
      userStore: store,
      stateStore: store,
    };
    const manager = new UserManager(settings);
    await manager.metadataService.getMetadata(); // looked up now, and not with the first refresh
    if (tokens) await manager.storeUser(new User({ ...tokens, profile: { sub: "somebody" } }));
    return {
      authorizationUrl: async () => (await new OidcClient(settings).createSigninRequest({ request_type: "si:r" })).url,
      exchange: async (redirectTo) => (await manager.signinRedirectCallback(redirectTo)).refresh_token,
      refresh: async () => (await manager.signinSilent()).refresh_token,
      narrow: async (scope) => {
        const user = await manager.getUser();
        user.scope = scope;
        await manager.storeUser(user);
        return (await manager.signinSilent()).scope;
      },
    };
  },
  "oidc-client-ts, public": () => libraries["oidc-client-ts"](null),
  "google-auth-library": () => {
    const endpoints = { oauth2TokenUrl: tokenUrl, oauth2AuthBaseUrl: signIn };
    const client = new GoogleClient({ clientId: id, clientSecret: secret, redirectUri: back, endpoints });
    if (tokens) client.setCredentials(tokens);
    return {
      authorizationUrl: () => client.generateAuthUrl({ scope, state, ...pkce }),
      exchange: async (redirectTo) => {
        const code = new URL(redirectTo).searchParams.get("code");
        const told = await client.getToken({ code, codeVerifier: verifier });
        client.setCredentials(told.tokens);
        return told.tokens.refresh_token;
      },
      refresh: async () => (await client.refreshAccessToken()).credentials.refresh_token,
    };
  },
};

const client = await libraries[library]();
console.log(JSON.stringify({ returned: "ready" }));
for await (const line of createInterface({ input: process.stdin })) {
  const { call, argument } = JSON.parse(line);
  let answer;
  try {
    answer = client[call] ? { returned: await client[call](argument) } : { missing: true };
  } catch (error) {
    const places = {
      ".error": error.error,
      ".data.payload": error.data?.payload?.error,
      ".response.data": error.response?.data?.error,
    };
    const [place, code] = Object.entries(places).find(([, found]) => typeof found === "string") ?? [null, null];
    answer = { thrown: error.constructor.name, place, code, text: String(error) };
  }
  console.log(JSON.stringify(answer));
}
process.exit(0);
