// Client libraries of others, unmodified, each behind the same few calls. One process is one client of one library: its
// arguments say which, where the server is and what it is registered as; each line that it reads is a call, and is
// answered by one line: what the library returned, or the error that it threw.

import { createInterface } from "node:readline";
import { OAuth2Client as GoogleClient } from "google-auth-library";
import * as oauth from "oauth4webapi";
import { InMemoryWebStorage, User, UserManager, WebStorageStateStore } from "oidc-client-ts";
import * as openid from "openid-client";
import { AuthorizationCode } from "simple-oauth2";

const [library, issuer, tokenUrl, id, secret, tokensText] = process.argv.slice(2);
const tokens = JSON.parse(tokensText);
const here = new URL(issuer);

const libraries = {
  "openid-client": async (auth) => {
    const config = await openid.discovery(here, id, secret, auth, { algorithm: "oauth2" });
    let token = tokens.refresh_token;
    const ask = async (parameters) => {
      const told = await openid.refreshTokenGrant(config, token, parameters);
      token = told.refresh_token;
      return told;
    };
    return { refresh: async () => (await ask()).refresh_token, narrow: async (scope) => (await ask({ scope })).scope };
  },
  "openid-client, Basic": () => libraries["openid-client"](openid.ClientSecretBasic(secret)),
  oauth4webapi: async () => {
    const server = await oauth.processDiscoveryResponse(here, await oauth.discoveryRequest(here, { algorithm: "oauth2" }));
    const client = { client_id: id };
    let token = tokens.refresh_token;
    const ask = async (additionalParameters) => {
      const auth = oauth.ClientSecretBasic(secret);
      const response = await oauth.refreshTokenGrantRequest(server, client, auth, token, { additionalParameters });
      const told = await oauth.processRefreshTokenResponse(server, client, response);
      token = told.refresh_token;
      return told;
    };
    return { refresh: async () => (await ask()).refresh_token, narrow: async (scope) => (await ask({ scope })).scope };
  },
  "simple-oauth2": () => {
    const { origin, pathname } = new URL(tokenUrl);
    const client = new AuthorizationCode({ client: { id, secret }, auth: { tokenHost: origin, tokenPath: pathname } });
    let token = client.createToken(tokens);
    const ask = async (parameters) => {
      token = await token.refresh(parameters);
      return token.token;
    };
    return { refresh: async () => (await ask()).refresh_token, narrow: async (scope) => (await ask({ scope })).scope };
  },
  "oidc-client-ts": async () => {
    const store = new WebStorageStateStore({ store: new InMemoryWebStorage() });
    const manager = new UserManager({
      authority: issuer,
      client_id: id,
      client_secret: secret,
      redirect_uri: "https://app.example/back",
      userStore: store,
      stateStore: store,
    });
    await manager.metadataService.getMetadata(); // looked up now, and not with the first refresh
    await manager.storeUser(new User({ ...tokens, profile: { sub: "somebody" } }));
    return {
      refresh: async () => (await manager.signinSilent()).refresh_token,
      narrow: async (scope) => {
        const user = await manager.getUser();
        user.scope = scope;
        await manager.storeUser(user);
        return (await manager.signinSilent()).scope;
      },
    };
  },
  "google-auth-library": () => {
    const client = new GoogleClient({ clientId: id, clientSecret: secret, endpoints: { oauth2TokenUrl: tokenUrl } });
    client.setCredentials(tokens);
    return { refresh: async () => (await client.refreshAccessToken()).credentials.refresh_token };
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
