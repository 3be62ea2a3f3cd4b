// Whoever logs in with the page's own form is logged in for every other request of the page.
const page = SwaggerUIBundle({
  dom_id: "#page",
  url: "openapi.json",
  validatorUrl: null,
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  responseInterceptor: (response) => {
    if (response.ok && response.body && response.body.access_token) {
      page.preauthorizeApiKey("token", response.body.access_token);
    }
    return response;
  },
});
