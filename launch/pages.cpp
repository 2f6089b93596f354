#include "launch/pages.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include <string_view>

#include "base/error.h"

namespace shoal {

// Made from launch/web by launch/web/embed.cmake.
extern const std::string_view chat_page, status_page;

namespace {

/// What a browser compares a script with: 'sha256-…' of what stands between <script> and </script>.
std::string script_hash(std::string_view page) {
  static constexpr std::string_view open = "<script>";
  const auto begin = page.find(open), end = page.find("</script>");
  if (begin == page.npos || end == page.npos) fail("a page of this build has no script");
  const std::string_view script = page.substr(begin + open.size(), end - begin - open.size());
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(script.data()), script.size(), digest);
  unsigned char text[4 * ((SHA256_DIGEST_LENGTH + 2) / 3) + 1];
  const int length = EVP_EncodeBlock(text, digest, sizeof digest);
  return "'sha256-" + std::string(reinterpret_cast<const char*>(text), static_cast<std::size_t>(length)) + "'";
}

/// The page's one script may run and talk to this server; everything else is forbidden, so that an answer of the model
/// that got past the page's escaping could still not run, load or send anything.
std::string policy_for(std::string_view page) {
  return "default-src 'none'; script-src " + script_hash(page) +
         "; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
         "frame-ancestors 'none'";
}

}  // namespace

bool is_page(const std::string& path) { return path == "/" || path == "/status"; }

void send_page(const std::string& path, const Responder& responder) {
  const std::string_view page = path == "/" ? chat_page : status_page;
  responder.send(200, "text/html; charset=utf-8", std::string(page),
                 {{"Content-Security-Policy", policy_for(page)},
                  {"X-Content-Type-Options", "nosniff"},
                  {"Referrer-Policy", "no-referrer"},
                  {"Cache-Control", "no-cache"}});
}

}  // namespace shoal
